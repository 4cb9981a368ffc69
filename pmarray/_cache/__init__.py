"""Chunks in memory under one budget, and the thread that writes them behind."""
