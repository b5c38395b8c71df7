# a client-go informer sees 10,000 events, each once and in order
informer -events 10000 -objects 20
