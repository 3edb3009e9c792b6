from hypothesis import settings

# How long an example takes says nothing on a busy machine; the timeout of the run bounds them all.
settings.register_profile("wire", deadline=None)
settings.load_profile("wire")
