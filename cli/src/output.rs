//! Standard output: what a verb answers, and nothing else. Standard error: what is said beside it.
//!
//! Nothing here panics: `println!` and `eprintln!` do when their reader is gone or the disk behind it is full.

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

/// Ends the process when the reader, such as `head`, has gone: there is nobody left to answer.
fn write(parts: &[&[u8]]) {
    let mut out = std::io::stdout().lock();
    let written = parts.iter().try_for_each(|part| out.write_all(part));
    if written.and_then(|()| out.flush()).is_err() {
        std::process::exit(BROKEN_PIPE);
    }
}

/// One line beside the answer. Its loss costs nothing but the line.
pub(crate) fn note(line: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(format!("{line}\n").as_bytes());
}

/// The line in place of the one before, on a terminal.
pub(crate) fn moving_note(line: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(format!("\r\x1b[K{line}").as_bytes());
    let _ = err.flush();
}
