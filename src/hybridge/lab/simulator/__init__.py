"""``hybridge lab simulate``: a front and its replicas as a discrete-event simulation, from measured seconds."""
