a = 1 + '2'
b = [1] < 2
c = -'x'
d = int('eight')
e = max(1)
f = len(3)
