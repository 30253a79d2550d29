BATCH_SIZE = __import__('os').system('touch pwned')
