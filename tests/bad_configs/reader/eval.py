BATCH_SIZE = eval('open("pwned", "w")')
