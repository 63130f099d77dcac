"""Naive references: the decoder and its mixers, one token at a time, written from their equations.

They are the specification that the library is tested against, so nothing here imports mixerzoo. Every vector
is a 1-D float64 tensor; loops over tokens, layers, heads and sources are Python loops.
"""
