from appliance.testing.filter import FilterContract
from appliance.testing.nodes import make_node, make_request

SETTINGS = {"nodes": ["node-1"], "projects": ["project-1"]}


class TestReserved(FilterContract, plugin="reserved", settings=SETTINGS):
    def test_only_its_projects_get_a_reserved_node(self, driver):
        nodes = [make_node(1), make_node(2)]
        others = self.refuse(driver, make_request(project_id="project-2"), nodes)
        assert others == ["is reserved for other projects", None]
        assert self.refuse(driver, make_request(project_id="project-1"), nodes) == [None, None]
