"""An application with a cache in it, the real servers that run it, and traffic that checks what they answer.

``python -m integration.embedding`` is the soak of gunicorn workers.
"""
