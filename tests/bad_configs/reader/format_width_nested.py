width = 10**9
name = f'{1:{width}}'
