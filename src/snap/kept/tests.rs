use super::*;

const OLD: Duration = Duration::from_secs(30 * 24 * 3600);

fn kept() -> (tempfile::TempDir, Kept) {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().to_owned();
    (place, Kept { directory })
}

fn set_age(path: &Path, age: Duration) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

/// An image of 1 MiB that was used so long ago.
fn image(kept: &Kept, name: &str, used: Duration) -> Entry {
    let entry = kept.entry(name);
    assert!(entry.is_first_use().unwrap());
    let mut bytes = vec![0; 1 << 20];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(&entry.path, bytes).unwrap();
    set_age(&entry.path, used);
    set_age(&entry.note, used);
    entry
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let (_place, kept) = kept();
    let (two, three, one) = (
        image(&kept, "two", OLD),
        image(&kept, "three", 2 * IN_USE),
        image(&kept, "one", 2 * OLD),
    );
    let now = image(&kept, "now", Duration::ZERO);
    assert_eq!(kept.summary().0, 4);
    kept.shrink(5 << 20);
    assert!(one.path.exists());
    kept.shrink(7 << 19);
    assert!(!one.path.exists() && !one.note.exists() && two.path.exists());
    let making = two.lock().unwrap().unwrap();
    let machine = File::open(&three.path).unwrap();
    flock::take(&machine, &three.path, Use::Reading).unwrap();
    kept.shrink(5 << 19);
    assert!(two.path.exists() && three.path.exists());
    drop(machine);
    kept.shrink(5 << 19);
    assert!(two.path.exists() && !three.path.exists());
    drop(making);
    kept.shrink(0);
    assert!(!two.path.exists() && now.path.exists());
}

#[test]
fn notes_and_what_was_left_are_swept_after_a_while() {
    let (_place, kept) = kept();
    let used = image(&kept, "used", OLD);
    let left = kept.directory.join("x.img.apppot-new-1");
    for path in [&kept.entry("once").note, &kept.entry("new").note, &left] {
        fs::write(path, "").unwrap();
        set_age(path, OLD);
    }
    kept.entry("new").touch();
    fs::write(kept.entry("making").note.as_path(), "").unwrap();
    let making = kept.entry("making").lock().unwrap().unwrap();
    set_age(&kept.entry("making").note, OLD);
    kept.make_room(1 << 20).unwrap();
    assert!(kept.entry("making").note.exists());
    drop(making);
    assert!(!left.exists() && !kept.entry("once").note.exists());
    assert!(used.path.exists() && used.note.exists());
    assert!(kept.entry("new").note.exists());
    assert!(kept.make_room(MOST + 1).is_err());
}

#[test]
fn what_does_not_fit_beside_what_is_in_use_is_not_made() {
    let (_place, kept) = kept();
    let _used = image(&kept, "used", Duration::ZERO);
    kept.make_room(MOST / 1024).unwrap();
    let left = kept.directory.join("used.img.apppot-new-1");
    fs::write(&left, vec![1; 1 << 20]).unwrap();
    assert!(kept.sum() >= 2 << 20);
    let error = kept.make_room(MOST - (1 << 20)).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    kept.entry("used").clean();
    assert!(!left.exists() && kept.entry("used").path.exists());
    let first = kept.lock().unwrap().unwrap();
    assert!(kept.lock().unwrap().is_none());
    drop(first);
    assert!(kept.lock().unwrap().is_some());
}

#[test]
fn links_and_pipes_are_no_notes_and_others_directories_are_not_used() {
    let (place, mut kept) = kept();
    kept.check().unwrap();
    let entry = image(&kept, "x", Duration::ZERO);
    drop(entry.keep().unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&entry.path), mode(&entry.note)), (0o600, 0o600));
    assert!(entry.image().is_some());
    fs::rename(&entry.note, kept.directory.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &entry.note).unwrap();
    assert!(entry.image().is_none() && entry.lock().is_err() && entry.keep().is_err());
    fs::remove_file(&entry.note).unwrap();
    nix::unistd::mkfifo(&entry.note, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(entry.image().is_none() && entry.lock().is_err() && entry.keep().is_err());
    let set = |mode| fs::set_permissions(place.path(), fs::Permissions::from_mode(mode));
    set(0o770).unwrap();
    assert!(kept.check().is_err());
    set(0o700).unwrap();
    std::os::unix::fs::symlink(".", place.path().join("link")).unwrap();
    let directory = place.path().join("link");
    assert!(Kept { directory }.check().is_err());
}

#[test]
fn nobody_else_can_move_the_directory_or_lead_to_another() {
    let (place, _) = kept();
    let directory = place.path().join("open/committed");
    fs::create_dir_all(&directory).unwrap();
    let set = |mode| {
        fs::set_permissions(
            directory.parent().unwrap(),
            fs::Permissions::from_mode(mode),
        )
    };
    set(0o755).unwrap();
    std::os::unix::fs::symlink("open", place.path().join("link")).unwrap();
    let by_link = || Kept {
        directory: place.path().join("link/committed"),
    };
    let mut kept = by_link();
    kept.check().unwrap();
    assert_eq!(kept.directory, fs::canonicalize(&directory).unwrap());
    set(0o757).unwrap();
    assert!(kept.check().is_err() && by_link().check().is_err());
}

#[test]
fn an_image_is_used_when_it_is_the_one_that_was_made() {
    let (_place, kept) = kept();
    let entry = image(&kept, "x", Duration::ZERO);
    assert!(!entry.is_first_use().unwrap());
    assert!(entry.image().is_none());
    let lock = entry.lock().unwrap().unwrap();
    assert!(entry.lock().unwrap().is_none());
    let kept = entry.keep().unwrap();
    drop(lock);
    assert_eq!(entry.image().unwrap().stamp, kept.stamp);
    entry.touch();
    assert!(entry.image().is_some());
    std::thread::sleep(Duration::from_millis(20));
    set_age(&entry.path, OLD);
    assert!(entry.image().is_none());
}

#[test]
fn what_failed_is_tried_again_after_a_while() {
    let (_place, kept) = kept();
    let entry = image(&kept, "x", Duration::ZERO);
    assert!(!entry.has_failed());
    entry.fail();
    assert!(entry.has_failed() && entry.image().is_none() && !entry.path.exists());
    set_age(&entry.note, 2 * AGAIN);
    assert!(!entry.has_failed());
    // Who begins again and is killed has not failed.
    entry.fail();
    entry.begin().unwrap();
    assert!(!entry.has_failed() && entry.image().is_none());
}
