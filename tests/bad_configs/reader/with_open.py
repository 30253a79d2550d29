with open('pwned', 'w') as f:
    f.write('x')
