"""`python -m limpid` prints Table 1 of the paper from the objects that the commands use."""

from limpid.table1 import print_table

if __name__ == '__main__':
    print_table()
