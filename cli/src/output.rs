//! Standard output: what a verb answers, and nothing else.

use std::io::Write as _;

/// What a process gives that SIGPIPE ended: 128 and the signal's number.
const BROKEN_PIPE: i32 = 141;

/// One line.
pub(crate) fn line(line: &str) {
    write(&[line.as_bytes(), b"\n"]);
}

/// Text that ends its own lines.
pub(crate) fn text(text: &str) {
    write(&[text.as_bytes()]);
}

/// `println!` would panic when the reader, such as `head`, has gone.
fn write(parts: &[&[u8]]) {
    let mut out = std::io::stdout().lock();
    let written = parts.iter().try_for_each(|part| out.write_all(part));
    if written.and_then(|()| out.flush()).is_err() {
        std::process::exit(BROKEN_PIPE);
    }
}
