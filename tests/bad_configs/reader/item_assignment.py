shape = (1, 2)
shape[0] = 3
sizes = [1]
sizes[4] = 2
