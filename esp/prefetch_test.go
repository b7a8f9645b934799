package esp

import (
	"reflect"
	"testing"

	"postern/esp/ctaes"
)

// To fetch ahead of time changes nothing, whatever state an SA is in.
func TestFetchingAheadChangesNothing(t *testing.T) {
	for _, s := range allSuites() {
		o, in, _ := testPair(t, s, 64)
		workers := int(o.keys.contexts)
		fetch := func() {
			for ctx := range workers + 1 {
				o.Near(ctx)
				o.Ahead(ctx)
				in.Near(ctx)
				in.Ahead(ctx)
			}
		}
		buf := make([]byte, HeadRoom+100+TailRoom)
		for range 2 {
			noAllocs(t, s.String(), fetch)
			start, end, err := o.Seal(0, buf, HeadRoom, 100, 4)
			if err != nil {
				t.Fatalf("%s: %v", s, err)
			}
			fetch()
			if _, _, err := in.Open(0, buf[start:end]); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
		o.Wipe()
		in.Wipe()
		fetch()
	}
}

// What is fetched of a cipher is all of any AES-GCM with instructions, and not much more than the
// largest.
func TestAheadFetchesTheStateOfTheCipher(t *testing.T) {
	if !prefetches {
		t.Skip("this processor's memory is not fetched ahead of time")
	}
	defer ctaes.Use(ctaes.Current())
	var largest uintptr
	for _, r := range []ctaes.Routine{ctaes.Library, ctaes.Wide} {
		if ctaes.Use(r) != nil {
			continue
		}
		a, err := NewAEAD(EncrAESGCM16, make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		p := reflect.TypeOf(a)
		if p.Kind() != reflect.Pointer {
			t.Fatalf("an AEAD is a %s: its state is not where the interface points to", p)
		}
		if n := p.Elem().Size(); n > cipherLines*64 {
			t.Errorf("a %s has %d octets, and %d are fetched", p.Elem(), n, cipherLines*64)
		} else {
			largest = max(largest, n)
		}
	}
	if largest <= (cipherLines-1)*64 {
		t.Errorf("no AES-GCM has more than %d octets, and %d are fetched", largest, cipherLines*64)
	}
}
