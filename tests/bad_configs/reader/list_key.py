table = {[1]: 2}
