"""Requests and answers: the gateway, routes, options, bodies."""
