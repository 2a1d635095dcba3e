use std::time::Duration;

use capsa_core::{Error, VmExit};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ConsoleConfig, Pattern, ReadFrom};
use crate::VmHandle;
use crate::fake::{FakeGuest, started, started_with};

/// Long enough never to matter: what is waited for comes, or the clock is the test's own.
const LIMIT: Duration = Duration::from_secs(60);
/// The smallest log.
const SMALL: usize = 4096;

async fn small_log() -> (VmHandle, FakeGuest) {
    started_with(|vm| vm.console(ConsoleConfig::new().log_capacity(SMALL))).await
}

fn lagged(error: &std::io::Error) -> u64 {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(Error::ConsoleLagged { dropped }) => *dropped,
        _ => panic!("{error:?}"),
    }
}

/// Waits until the drain has taken everything that was written, by reading it.
async fn read_exactly(vm: &VmHandle, count: usize) -> Vec<u8> {
    let mut reader = vm.console().unwrap().lossless_reader(ReadFrom::Start);
    let mut bytes = vec![0; count];
    reader.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn a_prompt_without_a_newline_is_found_and_what_follows_is_left() {
    let (vm, mut guest) = started().await;
    let mut console = vm.console().unwrap();
    guest
        .output
        .write_all(b"boot\nlogin: and more")
        .await
        .unwrap();

    let text = console.wait_for("login: ", LIMIT).await.unwrap();

    assert_eq!(text, b"boot\nlogin: ");
    let mut rest = [0; 8];
    console.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"and more");
}

#[tokio::test]
async fn two_waits_find_two_matches_of_one_chunk() {
    let (vm, mut guest) = started().await;
    let mut console = vm.console().unwrap();
    guest.output.write_all(b"a# b# ").await.unwrap();
    assert_eq!(console.wait_for("# ", LIMIT).await.unwrap(), b"a# ");
    assert_eq!(console.wait_for("# ", LIMIT).await.unwrap(), b"b# ");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_shows_the_console_and_consumes_nothing() {
    let (vm, mut guest) = started().await;
    let mut console = vm.console().unwrap();
    guest.output.write_all(b"log").await.unwrap();

    let error = console.wait_for("login", LIMIT).await.unwrap_err();

    assert!(matches!(&error, Error::Timeout { limit: LIMIT, .. }));
    assert!(error.to_string().ends_with("console:\nlog"), "{error}");
    guest.output.write_all(b"in").await.unwrap();
    assert_eq!(console.wait_for("login", LIMIT).await.unwrap(), b"login");
}

#[tokio::test]
async fn the_end_of_the_vm_ends_a_wait_with_how_it_ended() {
    let (vm, mut guest) = started().await;
    let mut console = vm.console().unwrap();
    guest.output.write_all(b"last words").await.unwrap();
    guest.exit(VmExit::Reset);

    let error = console.wait_for("# ", LIMIT).await.unwrap_err();

    assert!(
        matches!(
            &error,
            Error::EndedEarly {
                exit: VmExit::Reset,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("last words"), "{error}");
    let mut rest = String::new();
    console.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last words");
}

#[tokio::test]
async fn a_match_in_the_last_output_counts_although_the_vm_has_ended() {
    let (vm, mut guest) = started().await;
    guest.output.write_all(b"done").await.unwrap();
    guest.exit(VmExit::PoweredOff);
    vm.wait().await;
    let mut console = vm.console().unwrap();
    assert_eq!(console.wait_for("done", LIMIT).await.unwrap(), b"done");
}

#[tokio::test]
async fn an_unread_console_never_holds_up_the_guest() {
    let (vm, mut guest) = small_log().await;
    let mut console = vm.console().unwrap();
    for _ in 0..1000 {
        guest.output.write_all(&[b'x'; 10_000]).await.unwrap();
    }
    guest.output.write_all(b"end").await.unwrap();
    guest.exit(VmExit::PoweredOff);
    vm.wait().await;

    let mut first = [0; 1];
    let error = console.read_exact(&mut first).await.unwrap_err();

    // The drain may still have some of it to take; whatever it drops now is counted next.
    let mut counted = lagged(&error);
    loop {
        let mut kept = Vec::new();
        match console.read_to_end(&mut kept).await {
            Ok(_) => {
                assert_eq!(counted + kept.len() as u64, 10_000_003);
                break;
            }
            Err(error) => counted += lagged(&error) + kept.len() as u64,
        }
    }
}

#[tokio::test]
async fn a_lossless_reader_holds_up_the_guest_and_gets_every_byte() {
    let (vm, mut guest) = small_log().await;
    let mut reader = vm.console().unwrap().lossless_reader(ReadFrom::Start);
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 7) as u8).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        guest.output.write_all(&sent).await.unwrap();
        guest.exit(VmExit::PoweredOff);
    });

    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();

    writing.await.unwrap();
    assert!(received == expected);
}

#[tokio::test]
async fn a_lossless_reader_that_goes_away_lets_the_guest_go_on() {
    let (vm, mut guest) = small_log().await;
    let reader = vm.console().unwrap().lossless_reader(ReadFrom::Start);
    let writing = tokio::spawn(async move {
        guest.output.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        guest
    });
    tokio::task::yield_now().await;
    drop(reader);
    writing.await.unwrap();
}

#[tokio::test]
async fn a_lossless_wait_that_fills_the_log_is_an_error_and_no_deadlock() {
    let (vm, mut guest) = small_log().await;
    let mut reader = vm.console().unwrap().lossless_reader(ReadFrom::Start);
    guest.output.write_all(&[b'x'; 3 * SMALL]).await.unwrap();
    let error = reader.wait_for("y", LIMIT).await.unwrap_err();
    assert!(matches!(&error, Error::Console { .. }), "{error:?}");
}

#[tokio::test]
async fn a_wait_that_output_overtakes_says_how_much_is_gone() {
    let (vm, mut guest) = small_log().await;
    let mut console = vm.console().unwrap();
    guest.output.write_all(&[b'x'; SMALL + 5]).await.unwrap();
    read_exactly(&vm, SMALL).await;
    tokio::task::yield_now().await;

    let error = console.wait_for("end", LIMIT).await.unwrap_err();

    assert!(
        matches!(error, Error::ConsoleLagged { dropped: 5 }),
        "{error:?}"
    );
    guest.output.write_all(b"end").await.unwrap();
    assert!(
        console
            .wait_for("end", LIMIT)
            .await
            .is_err_and(|error| matches!(error, Error::ConsoleLagged { dropped: 3 }))
    );
    assert_eq!(console.wait_for("end", LIMIT).await.unwrap().len(), SMALL);
}

#[tokio::test]
async fn readers_have_positions_of_their_own() {
    let (vm, mut guest) = started().await;
    let mut first = vm.console().unwrap();
    guest.output.write_all(b"one ").await.unwrap();
    first.wait_for("one ", LIMIT).await.unwrap();
    let mut from_now = first.reader(ReadFrom::Now);
    guest.output.write_all(b"two").await.unwrap();

    assert_eq!(first.wait_for("two", LIMIT).await.unwrap(), b"two");
    assert_eq!(from_now.wait_for("two", LIMIT).await.unwrap(), b"two");
    let mut from_start = first.reader(ReadFrom::Start);
    assert_eq!(from_start.wait_for("two", LIMIT).await.unwrap(), b"one two");
    assert_eq!(first.tail(5), b"e two");
}

#[tokio::test]
async fn a_reader_made_before_the_start_sees_all_of_it() {
    let (vm, guest) = crate::fake::FakeBackend::new(capsa_core::BackendKind::Kvm)
        .vm(|builder| builder)
        .await;
    let mut console = vm.console().unwrap();
    vm.start().await.unwrap();
    guest
        .await
        .unwrap()
        .output
        .write_all(b"first")
        .await
        .unwrap();
    assert_eq!(console.wait_for("first", LIMIT).await.unwrap(), b"first");
}

#[tokio::test]
async fn written_keys_reach_the_guest() {
    let (vm, mut guest) = started().await;
    let (_reader, mut writer) = vm.console().unwrap().split();
    writer.write_line("ls").await.unwrap();
    writer.interrupt().await.unwrap();
    writer.send_eof().await.unwrap();
    let mut typed = [0; 5];
    guest.input.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"ls\n\x03\x04");
}

#[tokio::test]
async fn many_writers_that_wait_at_once_all_get_their_turn() {
    let (vm, mut guest) = started().await;
    let console = vm.console().unwrap();
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let mut writer = console.writer();
            tokio::spawn(async move { writer.write_all(&[b'k'; 10_000]).await })
        })
        .collect();
    let mut typed = vec![0; 80_000];
    guest.input.read_exact(&mut typed).await.unwrap();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn writing_to_a_vm_that_has_ended_says_how_it_ended() {
    let (vm, guest) = started().await;
    let mut console = vm.console().unwrap();
    guest.exit(VmExit::TripleFault);
    let mut rest = Vec::new();
    console.read_to_end(&mut rest).await.unwrap();
    vm.wait().await;
    let error = console.write_line("ls").await.unwrap_err();
    assert!(
        matches!(error, Error::Ended(VmExit::TripleFault)),
        "{error:?}"
    );
}

/// What a wait must find: everything up to the first end of a match.
fn model(text: &[u8], pattern: &str) -> Option<usize> {
    let regex = regex::bytes::Regex::new(pattern).unwrap();
    (0..=text.len()).find(|end| regex.is_match(text.get(..*end).unwrap()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn waits_and_reads_lose_and_repeat_nothing_however_the_output_is_cut(
        text in "[ab#\n ]{0,200}",
        sizes in prop::collection::vec(1_usize..24, 1..12),
        patterns in prop::collection::vec(prop::sample::select(vec!["# ", "ab", "a+#", "\n", "(a|b){3}"]), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (vm, mut guest) = started().await;
            let mut console = vm.console().unwrap();
            let bytes = text.clone().into_bytes();
            tokio::spawn(async move {
                let mut rest = bytes.as_slice();
                for size in sizes.iter().cycle() {
                    let (piece, after) = rest.split_at((*size).min(rest.len()));
                    guest.output.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                guest.exit(VmExit::PoweredOff);
            });
            let mut rest = text.as_bytes();
            for pattern in patterns {
                let found = console.wait_for(&Pattern::regex(pattern).unwrap(), LIMIT).await;
                match model(rest, pattern) {
                    Some(end) => {
                        let (expected, after) = rest.split_at(end);
                        prop_assert_eq!(found.unwrap(), expected);
                        rest = after;
                    }
                    None => {
 let ended = matches!(found, Err(Error::EndedEarly { .. }));
 prop_assert!(ended);
}
                }
            }
            let mut left = Vec::new();
            console.read_to_end(&mut left).await.unwrap();
            prop_assert_eq!(left, rest);
            Ok(())
        })?;
    }
}
