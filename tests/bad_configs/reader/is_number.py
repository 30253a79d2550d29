x = 3
y = x is 3
