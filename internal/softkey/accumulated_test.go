package softkey

import (
	"crypto/sha3"
	"encoding/hex"
	"flag"
	"fmt"
	"testing"

	"filippo.io/mldsa/mldsacrypto"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

var longFlag = flag.Bool("long", false, "10 000 keys and signatures of each ML-DSA parameter set, not 100: a minute")

// CCTV's accumulated ML-DSA vectors (github.com/C2SP/CCTV, ML-DSA/accumulated): a SHAKE128 stream gives seeds; keys and deterministic signatures of
// the empty message go into another. The signatures are made as the package's are, of μ, and each has to verify both ways.
func TestMLDSAAccumulated(t *testing.T) {
	for _, c := range []struct {
		s       keyspec.Spec
		n       int
		want    string
		onlyFor bool
	}{
		{keyspec.MLDSA44, 100, "d51148e1f9f4fa1a723a6cf42e25f2a99eb5c1b378b3d2dbbd561b1203beeae4", false},
		{keyspec.MLDSA65, 100, "8358a1843220194417cadbc2651295cd8fc65125b5a5c1a239a16dc8b57ca199", false},
		{keyspec.MLDSA87, 100, "8c3ad714777622b8f21ce31bb35f71394f23bc0fcf3c78ace5d608990f3b061b", false},
		{keyspec.MLDSA44, 10000, "e7fd21f6a59bcba60d65adc44404bb29a7c00e5d8d3ec06a732c00a306a7d143", true},
		{keyspec.MLDSA65, 10000, "5ff5e196f0b830c3b10a9eb5358e7c98a3a20136cb677f3ae3b90175c3ace329", true},
		{keyspec.MLDSA87, 10000, "80a8cf39317f7d0be0e24972c51ac152bd2a3e09bc0c32ce29dd82c4e7385e60", true},
	} {
		if c.onlyFor && !*longFlag {
			continue
		}
		t.Run(fmt.Sprintf("%s/%d", c.s, c.n), func(t *testing.T) {
			in, out := sha3.NewSHAKE128(), sha3.NewSHAKE128()
			seed := make([]byte, 32)
			for range c.n {
				_, _ = in.Read(seed)
				k, err := Load(c.s, seed)
				if err != nil {
					t.Fatal(err)
				}
				spki, err := pubkey.Marshal(c.s, k.mldsa.PublicKey().Bytes())
				if err != nil {
					t.Fatal(err)
				}
				public, err := pubkey.Parse(c.s, spki)
				if err != nil {
					t.Fatal(err)
				}
				mu, ok := pubkey.Prepare(keyspec.MLDSAShake256, pubkey.RAW, public, nil, make([]byte, pubkey.PreparedMax))
				if !ok {
					t.Fatal("no μ")
				}
				signature, err := k.mldsa.SignDeterministic(mu, mldsacrypto.MLDSAMu)
				if err != nil {
					t.Fatal(err)
				}
				if !public.Verify(keyspec.MLDSAShake256, pubkey.RAW, nil, signature) || !public.Verify(keyspec.MLDSAShake256, pubkey.EXTERNALMU, mu, signature) {
					t.Fatalf("a signature by %x does not verify", seed)
				}
				_, _ = out.Write(public.Raw())
				_, _ = out.Write(signature)
			}
			sum := make([]byte, 32)
			_, _ = out.Read(sum)
			if got := hex.EncodeToString(sum); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
