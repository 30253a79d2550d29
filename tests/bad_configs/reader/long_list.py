sizes = [0] * 10**9
