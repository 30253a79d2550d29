a = []
a += [a]
b = str(a)
