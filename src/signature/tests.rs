use std::io::Write;
use std::os::unix::fs::symlink;

use minisign::KeyPair;

use super::*;

struct Scene {
    directory: tempfile::TempDir,
    keys: KeyPair,
}

impl Scene {
    /// A file `signed` with its signature.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let scene = Scene {
            directory,
            keys: KeyPair::generate_unencrypted_keypair().unwrap(),
        };
        std::fs::write(scene.path("signed"), b"content").unwrap();
        scene.sign("signed");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn key(&self) -> Key {
        Key::try_from(self.keys.pk.to_base64()).unwrap()
    }

    fn sign(&self, name: &str) {
        let file = File::open(self.path(name)).unwrap();
        let signed = minisign::sign(None, &self.keys.sk, file, Some("said"), None).unwrap();
        std::fs::write(place(&self.path(name)), signed.to_string()).unwrap();
    }

    fn verify(&self, name: &str, keys: &[Key], verified: &Verified) -> Result<Signed> {
        verify(
            &File::open(self.path(name)).unwrap(),
            &self.path(name),
            keys,
            verified,
        )
    }

    /// Why it is refused.
    fn refused(&self, name: &str, keys: &[Key]) -> String {
        let error = self.verify(name, keys, &nobody()).unwrap_err();
        assert!(
            crate::failure::hint(&error).is_some() || name == "garbage",
            "{error:#}"
        );
        format!("{error:#}")
    }
}

/// A memory that believes and remembers nothing.
fn nobody() -> Verified {
    Verified::only(Vec::new(), None)
}

#[test]
fn a_signature_by_any_trusted_key_counts() {
    let (scene, other) = (Scene::new(), Scene::new());
    let signed = scene.verify("signed", &[other.key(), scene.key()], &nobody());
    let signed = signed.unwrap();
    assert_eq!((signed.key, signed.comment.as_str()), (scene.key(), "said"));
}

#[test]
fn what_is_wrong_is_said() {
    let (scene, other) = (Scene::new(), Scene::new());
    let keys = [scene.key()];
    assert!(scene
        .refused("signed", &[other.key()])
        .contains("by no trusted key"));
    std::fs::write(scene.path("bare"), b"content").unwrap();
    assert!(scene.refused("bare", &keys).contains("is not signed"));
    std::fs::write(scene.path("garbage"), b"content").unwrap();
    for text in [
        "",
        "x",
        "untrusted comment: x\nRWQ=\ntrusted comment: y\nAA==\n",
        "\u{0}\n\n\n\n",
    ] {
        std::fs::write(place(&scene.path("garbage")), text).unwrap();
        assert!(scene
            .refused("garbage", &keys)
            .contains("no signature of minisign"));
    }
    std::fs::write(scene.path("signed"), b"Content").unwrap();
    assert!(scene
        .refused("signed", &keys)
        .contains("not what was signed"));
}

#[test]
fn every_line_of_a_signature_counts() {
    let scene = Scene::new();
    let text = std::fs::read_to_string(place(&scene.path("signed"))).unwrap();
    let comment = text.find("said").unwrap();
    let lines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    for at in [
        lines[0] + 30,
        lines[1] - 20,
        comment,
        lines[2] + 10,
        lines[3] - 20,
    ] {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        std::fs::write(place(&scene.path("signed")), bytes).unwrap();
        assert!(
            scene.verify("signed", &[scene.key()], &nobody()).is_err(),
            "{at}"
        );
    }
}

#[test]
fn a_file_of_another_name_needs_its_own_signature() {
    let scene = Scene::new();
    symlink("signed", scene.path("link")).unwrap();
    // Callers give the real name.
    assert!(scene
        .refused("link", &[scene.key()])
        .contains("is not signed"));
}

#[test]
fn what_was_verified_is_remembered_until_anything_changes() {
    let scene = Scene::new();
    let uid = nix::unistd::geteuid().as_raw();
    let memory = scene.path("memory");
    let verified = Verified::only(vec![(memory.clone(), uid)], Some(memory.clone()));
    let keys = [scene.key()];
    // What has just changed is not remembered: the next change could look the same.
    scene.verify("signed", &keys, &verified).unwrap();
    assert!(!memory.exists());
    std::thread::sleep(std::time::Duration::from_millis(2100));
    scene.verify("signed", &keys, &verified).unwrap();
    let file = File::open(scene.path("signed")).unwrap();
    let stamp = Stamp::of(&file).unwrap();
    let text = std::fs::read_to_string(place(&scene.path("signed"))).unwrap();
    assert!(verified.has(&stamp, &file, &keys[0], &text));
    // Another key, another signature, another owner, a place that others write into.
    assert!(!verified.has(&stamp, &file, &Scene::new().key(), &text));
    assert!(!verified.has(&stamp, &file, &keys[0], &format!("{text} ")));
    let others = Verified::only(vec![(memory.clone(), uid + 1)], None);
    assert!(!others.has(&stamp, &file, &keys[0], &text));
    let open: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&memory, open).unwrap();
    assert!(!verified.has(&stamp, &file, &keys[0], &text));
    // Another content under the same size and time.
    let time = file.metadata().unwrap().modified().unwrap();
    let mut writer = File::options()
        .write(true)
        .open(scene.path("signed"))
        .unwrap();
    writer.write_all(b"Content").unwrap();
    writer.set_modified(time).unwrap();
    assert!(scene
        .refused("signed", &keys)
        .contains("not what was signed"));
    assert!(scene.verify("signed", &keys, &verified).is_err());
}

#[test]
fn keys_are_lines_or_files() {
    let scene = Scene::new();
    let file = scene.path("key.pub");
    std::fs::write(&file, scene.keys.pk.to_box().unwrap().to_string()).unwrap();
    assert_eq!(
        Key::from_argument(file.to_str().unwrap()).unwrap(),
        scene.key()
    );
    assert_eq!(
        Key::from_argument(&scene.key().to_string()).unwrap(),
        scene.key()
    );
    assert!(Key::from_argument("RWshort").is_err());
    std::fs::write(&file, "untrusted comment: x\nnothing\n").unwrap();
    assert!(Key::from_argument(file.to_str().unwrap()).is_err());
}
