use super::*;

const MASK: [u8; 4] = [1, 2, 3, 4];

/// A frame as a client sends it, its length written as short as it may be.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..=125 => bytes.push(MASKED | u8::try_from(short).unwrap()),
        medium @ 126..=0xffff => {
            bytes.push(MASKED | 126);
            bytes.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            bytes.push(MASKED | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

/// What comes out for `input` that comes `at_once` bytes at a time.
fn pass(frames: &mut Frames, input: &[u8], at_once: usize) -> Result<Vec<u8>, Breach> {
    let mut passed = Vec::new();
    for part in input.chunks(at_once) {
        let mut output = vec![0; part.len() + OVERHEAD];
        let length = frames.pass(part, &mut output, 0)?;
        passed.extend_from_slice(&output[..length]);
    }
    Ok(passed)
}

fn frames() -> Frames {
    Frames::new(FrameLimits::of_messages(70_000))
}

/// The messages that the frames in `bytes` make, and the longest frame.
fn messages(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, usize) {
    let (mut made, mut open, mut longest) = (Vec::new(), None::<(u8, Vec<u8>)>, 0);
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut head = [0; HEAD];
        let length = head_length(rest[1]);
        head[..length].copy_from_slice(&rest[..length]);
        let parsed = parse(&head).unwrap();
        let size = usize::try_from(parsed.left).unwrap();
        longest = longest.max(size);
        let mask = parsed.mask.unwrap();
        let masked = rest[length..length + size].iter().zip(mask.iter().cycle());
        let payload: Vec<u8> = masked.map(|(byte, mask)| byte ^ mask).collect();
        rest = &rest[length + size..];
        if parsed.is_control() {
            made.push((parsed.opcode(), payload));
            continue;
        }
        let message = open.get_or_insert((parsed.opcode(), Vec::new()));
        message.1.extend(payload);
        if parsed.first & FIN != 0 {
            made.extend(open.take());
        }
    }
    assert_eq!(open, None);
    (made, longest)
}

#[test]
fn messages_come_through_whatever_the_cuts_and_long_frames_come_in_pieces() {
    let sizes = [0, 1, 125, 126, 4_095, 4_096, 4_097, 9_000, 65_535, 65_536, 70_000];
    let (mut sent, mut expected) = (Vec::new(), Vec::new());
    for (at, size) in sizes.into_iter().enumerate() {
        let payload: Vec<u8> = (0..size).map(|byte| (byte % 251) as u8).collect();
        sent.extend(frame(FIN | 2, &payload));
        sent.extend(frame(FIN | 9, &[at as u8]));
        expected.extend([(2, payload), (9, vec![at as u8])]);
    }
    sent.extend(frame(1, &[b'x'; 5_000]));
    sent.extend(frame(FIN | 10, b""));
    sent.extend(frame(0, b""));
    sent.extend(frame(FIN, b"y"));
    expected.push((10, vec![]));
    expected.push((1, [&[b'x'; 5_000][..], b"y"].concat()));
    for at_once in [1, 2, 3, 7, 100, 2_047, MAX_INPUT] {
        let mut frames = frames();
        let (made, longest) = messages(&pass(&mut frames, &sent, at_once).unwrap());
        assert!(made == expected, "{at_once} at once");
        assert_eq!((longest, frames.unfinished()), (4_096, None));
    }
}

#[test]
fn short_frames_come_through_as_they_are() {
    let sent = [
        frame(FIN | 1, b"hello"),
        frame(FIN | 8, &[3, 232]),
        frame(0xc2, &[0; 300]),
    ]
    .concat();
    assert_eq!(pass(&mut frames(), &sent, 5).unwrap(), sent);
}

#[test]
fn a_length_in_more_bytes_than_it_needs_is_refused() {
    for head in [
        &[0x82, 0xfe, 0, 125][..],
        &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
        &[0x89, 0xfe, 0, 5],
    ] {
        let sent = [head, &MASK].concat();
        assert_eq!(pass(&mut frames(), &sent, 1), Err(Breach::Protocol), "{head:?}");
    }
}

#[test]
fn what_no_client_may_send_is_refused() {
    for sent in [
        frame(9, b""),
        frame(FIN | 9, &[0; 126]),
        frame(FIN, b"x"),
        [frame(1, b"x"), frame(FIN | 1, b"y")].concat(),
        frame(FIN | 8, &[3]),
        frame(FIN | 8, &[3, 237]),
        frame(FIN | 8, &[0, 0]),
        frame(FIN | 8, &[255, 255, b'x']),
    ] {
        assert_eq!(pass(&mut frames(), &sent, 1), Err(Breach::Protocol), "{sent:?}");
    }
    for code in [1_000_u16, 1_003, 1_007, 1_014, 3_000, 4_999] {
        assert!(
            pass(&mut frames(), &frame(FIN | 8, &code.to_be_bytes()), 1).is_ok(),
            "{code}"
        );
    }
}

#[test]
fn a_message_is_too_large_as_soon_as_it_says_so() {
    let announced = [&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0x11, 0x71][..], &MASK].concat();
    assert_eq!(pass(&mut frames(), &announced, 100), Err(Breach::TooLarge));
    let mut frames = frames();
    assert!(pass(&mut frames, &frame(2, &[0; 40_000]), MAX_INPUT).is_ok());
    assert_eq!(
        pass(&mut frames, &frame(0, &[0; 40_000]), MAX_INPUT),
        Err(Breach::TooLarge)
    );
}

#[test]
fn what_has_come_of_a_message_is_known_until_it_ends() {
    let mut frames = frames();
    let begun = frame(2, &[0; 5_000]);
    pass(&mut frames, &begun[..1_008], MAX_INPUT).unwrap();
    assert_eq!(
        frames.unfinished(),
        Some(Unfinished {
            number: 1,
            bytes: 1_000
        })
    );
    pass(&mut frames, &begun[1_008..], MAX_INPUT).unwrap();
    pass(&mut frames, &frame(FIN | 9, b"ping"), MAX_INPUT).unwrap();
    assert_eq!(
        frames.unfinished(),
        Some(Unfinished {
            number: 1,
            bytes: 5_000
        })
    );
    pass(&mut frames, &frame(FIN, b"."), MAX_INPUT).unwrap();
    assert_eq!(frames.unfinished(), None);
    // One frame that is not there as a whole is unfinished, too.
    pass(&mut frames, &frame(FIN | 2, b"ab")[..7], MAX_INPUT).unwrap();
    assert_eq!(frames.unfinished(), Some(Unfinished { number: 2, bytes: 1 }));
}

fn limited() -> Frames {
    Frames::new(FrameLimits {
        message_bytes: 1_000,
        rates: Some(Rates {
            frames_per_s: 100,
            controls_per_s: 2,
            bytes_per_s: 2_000,
        }),
    })
}

/// How many of these frames are let through in a row at a time.
fn let_through(frames: &mut Frames, one: &[u8], at_us: u64) -> (usize, Breach) {
    for count in 0..1_000_000 {
        let mut output = vec![0; one.len() + OVERHEAD];
        if let Err(breach) = frames.pass(one, &mut output, at_us) {
            return (count, breach);
        }
    }
    panic!("there is no bound");
}

#[test]
fn ten_seconds_worth_may_come_at_once_and_then_the_rate_holds() {
    let ping = frame(FIN | 9, b"");
    let mut frames = limited();
    assert_eq!(
        let_through(&mut frames, &ping, 0),
        (20, Breach::TooFast(Rate::Controls))
    );
    assert_eq!(let_through(&mut frames, &ping, 3 * MICROS).0, 6);
    // After a long silence it is a burst again, and no more.
    assert_eq!(let_through(&mut frames, &ping, 1_000 * MICROS).0, 20);
}

#[test]
fn empty_fragments_and_large_messages_have_their_rates_too() {
    let mut frames = limited();
    pass(&mut frames, &frame(1, b""), 100).unwrap();
    assert_eq!(
        let_through(&mut frames, &frame(0, b""), 0),
        (999, Breach::TooFast(Rate::Frames))
    );
    let (count, breach) = let_through(&mut limited(), &frame(FIN | 2, &[0; 992]), 0);
    assert_eq!((count, breach), (20, Breach::TooFast(Rate::Bytes)));
    let mut unlimited = Frames::new(FrameLimits::of_messages(10));
    for _ in 0..100_000 {
        assert!(unlimited.pass(&frame(FIN | 9, b""), &mut [0; 100], 0).is_ok());
    }
}
