"""Trained learners: saved, loaded and used."""
