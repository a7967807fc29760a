"""Protocols of the field as data: YAML files beside this one, and what runs them through the REST API."""
