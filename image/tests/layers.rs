//! Layers of container images, merged as the OCI image specification says.
#![allow(clippy::unwrap_used)]

mod common;

use apppot_image::Archive;
use common::{import, shown, Tar};

fn merged(layers: &[Tar]) -> String {
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("image");
    let layers: Vec<Vec<u8>> = layers.iter().cloned().map(Tar::end).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    import(&path, &layers, Archive::Layer).unwrap();
    shown(&path)
}

fn below() -> Tar {
    Tar::default()
        .directory("a/")
        .file("a/one", "1")
        .file("a/two", "2")
        .directory("a/sub/")
        .file("a/sub/three", "3")
        .file("b", "B")
}

#[test]
fn later_layers_replace_and_add() {
    let above = Tar::default()
        .file("a/one", "new")
        .file("c", "C")
        .file("a/sub/four", "4");
    assert_eq!(
        merged(&[below(), above]),
        "a a/one=new a/sub a/sub/four=4 a/sub/three=3 a/two=2 b=B c=C"
    );
}

#[test]
fn directories_and_files_replace_each_other() {
    let above = Tar::default()
        .file("a", "file")
        .directory("b")
        .file("b/x", "X");
    assert_eq!(merged(&[below(), above]), "a=file b b/x=X");
}

#[test]
fn whiteouts_hide_what_is_below() {
    let above = Tar::default().file("a/.wh.one", "").file(".wh.b", "");
    assert_eq!(merged(&[below(), above]), "a a/sub a/sub/three=3 a/two=2");
    let above = Tar::default().file(".wh.a", "");
    assert_eq!(merged(&[below(), above]), "b=B");
    let above = Tar::default()
        .file(".wh.missing", "")
        .file("no/.wh.thing", "");
    assert_eq!(merged(&[Tar::default().file("x", "X"), above]), "x=X");
}

#[test]
fn opaque_directories_hide_what_is_below_in_whatever_order_they_come() {
    let wanted = "a a/new=N a/sub a/sub/five=5 b=B";
    let news = |tar: Tar| tar.file("a/new", "N").file("a/sub/five", "5");
    let before = news(Tar::default().directory("a").file("a/.wh..wh..opq", ""));
    let after = news(Tar::default().directory("a")).file("a/.wh..wh..opq", "");
    assert_eq!(merged(&[below(), before]), wanted);
    assert_eq!(merged(&[below(), after]), wanted);
}

#[test]
fn a_whiteout_does_not_hide_what_its_own_layer_brings() {
    let above = Tar::default().file("b", "new").file(".wh.b", "");
    assert!(merged(&[below(), above]).ends_with("b=new"));
    let above = Tar::default().file("a/x", "X").file(".wh.a", "");
    assert_eq!(merged(&[below(), above]), "a a/x=X b=B");
}

#[test]
fn what_belongs_to_a_storage_driver_is_left_out() {
    let layer = Tar::default()
        .file("x", "X")
        .directory(".wh..wh.plnk")
        .file(".wh..wh.aufs", "");
    assert_eq!(merged(&[layer]), "x=X");
}

#[test]
fn hard_links_lead_to_other_layers_and_survive_their_first_name() {
    let above = Tar::default()
        .add("link", b'1', "a/one", b"")
        .file(".wh.a", "");
    assert_eq!(merged(&[below(), above]), "b=B link=1");
    let above = Tar::default().add("c", b'1', "b", b"").file("b", "other");
    assert!(merged(&[below(), above]).ends_with("b=other c=B"));
}

#[test]
fn paths_through_symbolic_links_stay_in_the_image() {
    let layer = Tar::default()
        .directory("usr/lib")
        .add("lib", b'2', "usr/lib", b"")
        .add("abs", b'2', "/usr/lib", b"")
        .add("usr/up", b'2', "../usr/lib", b"");
    let above = Tar::default()
        .file("lib/a", "1")
        .file("abs/b", "2")
        .file("usr/up/c", "3");
    assert_eq!(
        merged(&[layer, above]),
        "abs->/usr/lib lib->usr/lib usr usr/lib usr/lib/a=1 usr/lib/b=2 usr/lib/c=3 usr/up->../usr/lib"
    );
}

#[test]
fn nothing_stays_of_files_that_a_later_layer_takes_away() {
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("image");
    let secret = "the secret ".repeat(1000);
    let lower = Tar::default()
        .file("secret", &secret)
        .file("kept", "k")
        .end();
    let upper = Tar::default().file(".wh.secret", "").end();
    import(&path, &[&lower, &upper], Archive::Layer).unwrap();
    assert_eq!(shown(&path), "kept=k");
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(10).any(|window| window == b"the secret"));
}
