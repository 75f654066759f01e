"""What option files may hold. `hat_plugin.engine.options` is the door; other rooms import from there alone."""
