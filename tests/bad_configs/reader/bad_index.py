sizes = [12, 24]
a = sizes[2]
b = sizes['x']
