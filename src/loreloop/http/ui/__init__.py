"""ui: what the platform knows, as pages for people; each is also JSON at the same address.

Pages are made here from templates, and a browser loads nothing from elsewhere. Who may see what is asked of the routes
that programs use: a visit stands for a key. Nobody but the application knows this room.
"""
