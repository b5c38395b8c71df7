//! Load tests for towline: fleets of simulated agents and clients, latencies, comparison with peers.
