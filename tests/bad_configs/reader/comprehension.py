sizes = [2**i for i in range(4)]
