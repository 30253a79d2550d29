table = {2**64: 1}
