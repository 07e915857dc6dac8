package p11

import (
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

func TestConformanceSlow(t *testing.T) {
	for _, latency := range []time.Duration{0, 200 * time.Microsecond} {
		t.Run(latency.String(), func(t *testing.T) {
			slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{Latency: latency})
			hsmtest.TestToken(t, opener(t, slow.URI()))
			r, err := slow.Report()
			t.Logf("%+v %v", r, err)
		})
	}
}
