from subprocess import run as go

x = go(['touch', 'pwned'])
