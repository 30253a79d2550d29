BATCH_SIZE = 0
for i in range(8):
    BATCH_SIZE += i
