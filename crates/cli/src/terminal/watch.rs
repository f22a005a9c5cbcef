//! One picture after another in the same place, until it is interrupted.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anstream::{AutoStream, ColorChoice};

use super::Screen;

/// The other screen, where the shell's lines stay as they are, and no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J";
/// Back again.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Where drawing begins.
const HOME: &str = "\x1b[H";
/// Clears what a former picture left of a line …
const REST_OF_LINE: &str = "\x1b[K";
/// … and below the last one.
const BELOW: &str = "\x1b[J";

/// Puts the terminal back, however the watching ends.
struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        let _ = write_all(LEAVE);
    }
}

/// Draws what `picture` gives every `interval` until SIGINT or SIGTERM; gives the last one's value. Where standard output
/// is no terminal, pictures follow each other.
///
/// # Errors
/// When signals can't be listened to or nothing can be written.
pub(crate) async fn watch<T>(
    interval: Duration,
    mut picture: impl AsyncFnMut(Screen) -> anyhow::Result<(String, T)>,
) -> anyhow::Result<Option<T>> {
    let stdout = io::stdout();
    let drawn = stdout.is_terminal();
    let coloured = AutoStream::choice(&stdout) != ColorChoice::Never;
    let mut interrupted = std::pin::pin!(crate::interrupted());
    let _entered = if drawn {
        write_all(ENTER)?;
        Some(Entered)
    } else {
        None
    };
    let mut last = None;
    loop {
        let screen = Screen::of_stdout();
        tokio::select! {
            signal = &mut interrupted => { signal?; return Ok(last) }
            made = picture(screen) => {
                let (text, value) = made?;
                last = Some(value);
                let text = super::guarded(&text).into_owned();
                let text = if coloured { text } else { anstream::adapter::strip_str(&text).to_string() };
                let text = if drawn { frame(&text, screen.height) } else { text };
                match write_all(&text) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(last),
                    other => other?,
                }
            }
        }
        tokio::select! {
            signal = &mut interrupted => { signal?; return Ok(last) }
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// A picture that takes the former one's place in one go: what stays the same is never seen to go.
fn frame(text: &str, height: Option<usize>) -> String {
    let mut frame = String::from(HOME);
    let most = height.unwrap_or(usize::MAX);
    let lines: Vec<&str> = text.lines().take(most).collect();
    for (at, line) in lines.iter().enumerate() {
        frame.push_str(line);
        frame.push_str(REST_OF_LINE);
        // After the last line of the screen this would push the first one out of it.
        if at + 1 < lines.len() {
            frame.push_str("\r\n");
        }
    }
    frame.push_str(BELOW);
    frame
}

fn write_all(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_takes_the_place_of_the_former_one_without_clearing_it_first() {
        assert_eq!(frame("a\nb\n", None), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
        assert_eq!(frame("a\nb\nc\n", Some(2)), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
        assert!(!frame("a", None).contains("\x1b[2J"));
    }
}
