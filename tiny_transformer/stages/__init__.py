"""Stages of training from config to finished run: what they load, train, save and show; the loop itself is below."""
