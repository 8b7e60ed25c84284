//! What can be said without a server: help, wrong use, nobody listening.

mod support;

use support::Rollcall;

#[expect(clippy::unwrap_used, reason = "a test ends where its port does")]
fn nobody() -> Rollcall {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Rollcall::at(&[listener.local_addr().unwrap().to_string()])
}

#[test]
fn help_names_the_commands_and_the_exit_codes() {
    let help = nobody().ok("--help");
    for word in [
        "group",
        "service",
        "node",
        "session",
        "watch",
        "member",
        "status",
        "bench",
        "completions",
    ] {
        assert!(help.contains(word), "{word} is missing");
    }
    for line in [
        "0  ok",
        "3  not found",
        "5  conflict",
        "ROLLCALL_ADDR",
        "NO_COLOR",
    ] {
        assert!(help.contains(line), "{line:?} is missing: {help}");
    }
}

#[test]
fn wrong_use_ends_with_2() {
    let rollcall = nobody();
    for words in [
        "",
        "frobnicate",
        "node show feed",
        "service put feed",
        "node register g/s",
        "node register g/s --address h:1 --kind ephemeral",
        "node register g/s --address h:1 --keep --kind static",
        "node deregister g/s/a g/s/b --if-revision 3",
        "node list g/s --max-age 1s",
        "group list --read leased --max-age 1s",
        "session list --max-age 1s --read linearizable",
        "status --addr ,",
        "status -o yaml",
        "bench register --rate 0",
        "bench register --batch 2000",
        "session end 7",
    ] {
        rollcall.fails(words, 2);
    }
}

#[test]
fn nobody_listening_ends_with_4() {
    let rollcall = nobody();
    for words in [
        "status --timeout 2s",
        "group list --timeout 2s",
        "group put g --timeout 2s",
        "node list g/s --read local --max-age 1s --timeout 2s",
        "node register g/s --address h:1 --kind static --timeout 2s",
        "node register g/s --address h:1 --keep --timeout 2s",
        "watch g/s --timeout 2s",
        "bench renew --count 1 --timeout 2s",
        "bench register --count 1 --timeout 2s",
    ] {
        rollcall.fails(words, 4);
    }
}

#[test]
fn completions_are_scripts() {
    let rollcall = nobody();
    assert!(rollcall.ok("completions bash").contains("_rollcall"));
    assert!(rollcall.ok("completions zsh").contains("#compdef rollcall"));
    assert!(rollcall.ok("completions fish").contains("complete -c rollcall"));
    rollcall.fails("completions tcsh", 2);
}
