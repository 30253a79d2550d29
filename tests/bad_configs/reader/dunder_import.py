BATCH_SIZE = 8
__import__('os').system('touch pwned')
