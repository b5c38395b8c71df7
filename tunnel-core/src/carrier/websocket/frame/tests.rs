use proptest::{prelude::*, prop_assert_eq, proptest};
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::*;

const OPCODES: [Opcode; 6] =
    [Opcode::Continuation, Opcode::Text, Opcode::Binary, Opcode::Close, Opcode::Ping, Opcode::Pong];

fn theirs(opcode: Opcode) -> OpCode {
    match opcode {
        Opcode::Continuation => OpCode::Data(Data::Continue),
        Opcode::Text => OpCode::Data(Data::Text),
        Opcode::Binary => OpCode::Data(Data::Binary),
        Opcode::Close => OpCode::Control(Control::Close),
        Opcode::Ping => OpCode::Control(Control::Ping),
        Opcode::Pong => OpCode::Control(Control::Pong),
    }
}

prop_compose! {
    fn header()(
        opcode in prop::sample::select(&OPCODES[..]),
        fin: bool,
        mask: Option<[u8; 4]>,
        length in prop_oneof![0..200u64, 65_500..65_600u64, 0..1u64 << 63],
    ) -> Header {
        let control = opcode.is_control();
        let length = if control { length % (MAX_CONTROL as u64 + 1) } else { length };
        Header { fin: fin || control, opcode, mask: mask.map(Mask), length }
    }
}

proptest! {
    #[test]
    fn a_header_is_written_as_tungstenite_writes_it(header in header()) {
        let mut ours = Vec::new();
        encode(&mut ours, &header);
        let reference = FrameHeader {
            is_final: header.fin,
            rsv1: false,
            rsv2: false,
            rsv3: false,
            opcode: theirs(header.opcode),
            mask: header.mask.map(|mask| mask.0),
        };
        let mut expected = Vec::new();
        reference.format(header.length, &mut expected).unwrap();
        prop_assert_eq!(&ours, &expected);
        prop_assert_eq!(decode(&ours), Ok(Decoded::Whole(header, ours.len())));
        // However little is there, it is known how much must be.
        for cut in 0..ours.len() {
            let Ok(Decoded::Needs(need)) = decode(&ours[..cut]) else { panic!("{cut} bytes of {ours:?}") };
            prop_assert!(cut < need && need <= ours.len());
        }
    }

    #[test]
    fn a_header_is_read_as_tungstenite_reads_it(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        let reference = FrameHeader::parse(&mut std::io::Cursor::new(&bytes));
        match decode(&bytes) {
            Ok(Decoded::Needs(need)) => {
                prop_assert!(need > bytes.len());
                prop_assert!(matches!(reference, Ok(None)));
            }
            Ok(Decoded::Whole(header, taken)) => {
                prop_assert!(taken <= bytes.len());
                let (theirs_of, length) = reference.unwrap().unwrap();
                prop_assert_eq!(theirs_of.is_final, header.fin);
                prop_assert_eq!(theirs_of.opcode, theirs(header.opcode));
                prop_assert_eq!(theirs_of.mask, header.mask.map(|mask| mask.0));
                prop_assert!(!theirs_of.rsv1 && !theirs_of.rsv2 && !theirs_of.rsv3);
                prop_assert_eq!(length, header.length);
            }
            // It judges reserved bits, lengths and control frames elsewhere; here it knows reserved opcodes only.
            Err(breach) => prop_assert_eq!(breach.code, CloseCode::Protocol),
        }
    }

    #[test]
    fn a_mask_is_the_same_however_the_payload_is_cut(
        payload in prop::collection::vec(any::<u8>(), 0..100),
        mask: [u8; 4],
        cuts in prop::collection::vec(0..20usize, 0..20),
    ) {
        let expected: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let (mut got, mut rest, mut running) = (payload, 0, Mask(mask));
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let end = rest + cut.min(got.len() - rest);
            running.apply(&mut got[rest..end]);
            rest = end;
        }
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn close_codes_are_those_that_tungstenite_lets_pass(code: u16) {
        use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as Theirs;
        prop_assert_eq!(decode_close(&code.to_be_bytes()).is_ok(), Theirs::from(code).is_allowed());
    }
}

#[test]
fn what_no_frame_may_be_is_refused_by_its_first_two_bytes() {
    for wrong in [
        [0xc2, 0x80],
        [0xa2, 0x80],
        [0x92, 0x80],
        [0x83, 0x80],
        [0x8b, 0x80],
        [0x8f, 0x80],
        [0x09, 0x80],
        [0x88, 0xfe],
    ] {
        assert_eq!(decode(&wrong).unwrap_err().code, CloseCode::Protocol, "{wrong:x?}");
    }
    assert_eq!(decode(&[0x82]), Ok(Decoded::Needs(2)));
    let longest = [0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let header = Header { fin: true, opcode: Opcode::Binary, mask: None, length: (1 << 63) - 1 };
    assert_eq!(decode(&longest), Ok(Decoded::Whole(header, 10)));
    let too_long = [0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0];
    assert!(decode(&too_long).is_err());
}

#[test]
fn a_close_frame_says_a_code_that_may_be_sent_and_a_text() {
    assert_eq!(decode_close(b""), Ok(None));
    assert_eq!(decode_close(b"\x03\xe8bye"), Ok(Some(1000)));
    assert_eq!(decode_close(b"\x03").unwrap_err().code, CloseCode::Protocol);
    assert_eq!(decode_close(b"\x03\xed").unwrap_err().code, CloseCode::Protocol);
    assert_eq!(decode_close(b"\x03\xe8\xce").unwrap_err().code, CloseCode::Invalid);
}
