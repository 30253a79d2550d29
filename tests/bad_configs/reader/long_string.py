name = 'a' * 10**9
