"""The commit protocol: journal, commits, recovery, and what readers see."""
