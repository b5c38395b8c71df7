//! Criterion benchmarks of towline's codec, mux and journey.
