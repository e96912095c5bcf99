"""Prompt sets: folders of templates, rules and examples, made into conversations."""
