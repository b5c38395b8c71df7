//! A connection with a kernel's buffers: what is written, on its way, and arrived, in both directions.

use std::time::Instant;

use bytes::BytesMut;
use towline_tunnel::proto::frame::{Frame, HEADER, MAX_PAYLOAD, decode};

use super::tap::Tap;

/// Who stands at one side of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    End(usize),
    Leg(usize),
}

/// One direction, named by the side that sends.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// The writer's batch, as far as the kernel has not yet taken it.
    pub(super) batch: BytesMut,
    /// Stream bytes in the batch.
    pub(super) payload: usize,
    /// In kernels and between them.
    pub(super) pipe: BytesMut,
    /// Read by the other side, and not yet a whole frame.
    pub(super) arrived: BytesMut,
    pub(super) stalled: bool,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) ports: [Port; 2],
    pub(super) wires: [Wire; 2],
    pub(super) tap: Tap,
    /// When bytes last came to each side.
    pub(super) inbound: [Instant; 2],
    pub(super) alive: bool,
    pub(super) going: bool,
    /// Bytes that arrived, in both directions.
    pub(super) delivered: u64,
    /// Bytes that the kernels hold in one direction.
    pub(super) capacity: usize,
}

impl Line {
    pub(super) fn new(ports: [Port; 2], capacity: usize, now: Instant) -> Self {
        Self {
            ports,
            wires: Default::default(),
            tap: Tap::default(),
            inbound: [now; 2],
            alive: true,
            going: false,
            delivered: 0,
            capacity: capacity.max(1),
        }
    }

    /// Moves from `side`'s batch to the pipe; whether the batch is now wholly in the kernel.
    pub(super) fn write(&mut self, side: usize) -> bool {
        let wire = &mut self.wires[side];
        let room = self.capacity.saturating_sub(wire.pipe.len());
        let part = wire.batch.split_to(room.min(wire.batch.len()));
        wire.pipe.extend_from_slice(&part);
        wire.batch.is_empty()
    }

    /// Bytes that `side` sent arrive.
    pub(super) fn arrive(&mut self, side: usize, bytes: usize, now: Instant) -> usize {
        let wire = &mut self.wires[side];
        let part = wire.pipe.split_to(bytes.min(wire.pipe.len()));
        wire.arrived.extend_from_slice(&part);
        self.delivered += part.len() as u64;
        if !part.is_empty() {
            self.inbound[1 - side] = now;
        }
        part.len()
    }

    /// The next frame from `side` that has arrived whole.
    pub(super) fn frame(&mut self, side: usize) -> Option<Frame> {
        let arrived = &mut self.wires[side].arrived;
        let frame = decode(arrived).expect("an honest peer's bytes are frames");
        assert!(frame.is_some() || arrived.len() < HEADER + MAX_PAYLOAD);
        frame
    }
}
