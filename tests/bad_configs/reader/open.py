text = open('/etc/passwd')
