//! Messages beside the streams.

use towline_tunnel::{
    ids::ClusterId,
    proto::CloseReason,
    session::{control::Control, question::Topic},
};

use super::session::key;

/// What is read is written and read the same.
pub fn run(input: &[u8]) {
    if let Ok((id, control)) = Control::decode(input) {
        let written = control.encode(id);
        assert!(Control::decode(&written).as_ref() == Ok(&(id, control.clone())), "{control:?}");
    }
}

/// One message of each type.
pub fn seeds() -> Vec<Vec<u8>> {
    let cluster = ClusterId::from_bytes([2; 32]);
    [
        Control::Resolve { name: "edge-7".into() },
        Control::Resolved { cluster, name: "edge-7".into(), online: true },
        Control::Renew { key: key(1) },
        Control::Renewed { certificate: vec![1, 2, 3] },
        Control::Failed { reason: CloseReason::ClusterUnknown, detail: "no".into() },
        Control::Ask { topic: Topic::AUDIT, cursor: Vec::new().into(), body: b"{}".to_vec().into() },
        Control::Answer { cursor: b"7".to_vec().into(), body: b"[]".to_vec().into() },
    ]
    .iter()
    .map(|control| control.encode(7).to_vec())
    .collect()
}
