from constants import HIDDEN

x = HIDDEN * 2
y = f'{HIDDEN}'
z = HIDDEN == 3
