"""Objectives that Lightning trains."""
