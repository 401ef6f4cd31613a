"""Asking a teacher: prompts from files, requests with every setting, answers into a store."""
