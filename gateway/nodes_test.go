// What is answered about nodes.
package gateway

import (
	"fmt"
	"slices"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// TestNodesByName: nodes are listed by their names, page by page, each once, whatever their ids are.
func TestNodesByName(t *testing.T) {
	a := startAlone(t)
	var want []string
	for i := range 7 {
		name := fmt.Sprintf("node-%d", i)
		want = append(want, name)
		a.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{
			NodeId: fmt.Sprintf("id-%d", 9-i), Name: name, Incarnation: 1,
		}}})
	}
	for _, size := range []int32{1, 3, 7, 100} {
		var got []string
		req := &apiv1.ListNodesRequest{PageSize: size, Filter: "name!=node-4"}
		for {
			r, err := apiv1.NewNodeServiceClient(a.conn).ListNodes(a.as(a.admin), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range r.GetNodes() {
				got = append(got, n.GetName())
			}
			if req.PageToken = r.GetNextPageToken(); req.GetPageToken() == "" {
				break
			}
		}
		if but4 := slices.Concat(want[:4], want[5:]); !slices.Equal(got, but4) {
			t.Errorf("in pages of %d: %v, want %v", size, got, but4)
		}
	}
}
